"""huggingface_hub's cache as that library lays it out, filled by a test in place of the network."""

import hashlib
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubCache:
    """A cache folder that huggingface_hub reads. `asked` lists what it would have downloaded."""

    def __init__(self, folder: Path, monkeypatch):
        import huggingface_hub.constants

        self.folder, self.asked = folder, []
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(self, repository: str, name: str, content: bytes) -> Path:
        """A file of a repository, as a download leaves it: its content under its digest, its name a link."""
        root = self.folder / f"models--{repository.replace('/', '--')}"
        blob, snapshot = root / "blobs" / hashlib.sha256(content).hexdigest(), root / "snapshots" / COMMIT
        for folder in (blob.parent, snapshot, root / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(COMMIT)
        blob.write_bytes(content)
        link = snapshot / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "..", "blobs", blob.name))
        return link
