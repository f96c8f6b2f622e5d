"""The page with every mail, as `make mails` writes it."""

import re
from pathlib import Path

from launcher import mail_previews
from mesh.paths import ROOT


def test_every_mail_is_on_the_page(tmp_path: Path) -> None:
    page = mail_previews.write(tmp_path / "mails.html").read_text()
    samples = list(mail_previews.samples())
    assert page.count("<iframe") == 2 * len(samples)
    folder = ROOT / "booking_svc" / "notifications" / "templates"
    written = {path.stem for path in folder.glob("*.html")} - {"booking"}
    shown = {sample.name.split(",")[0].split(" by ")[0] for sample in samples}
    assert {name.replace("_", " ") for name in written} <= shown


def test_no_sample_has_gaps() -> None:
    for sample in mail_previews.samples():
        for said in (sample.mail.subject, sample.mail.text, sample.mail.html):
            assert "None" not in said
            assert not re.search(r"{[{%#]|[}%#]}", said.replace("%;", ""))
        assert "\n\n\n" not in sample.mail.text
        assert "," not in sample.mail.subject[-1]
