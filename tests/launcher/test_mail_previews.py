"""The page with samples of all mails that `make mails` writes."""

import re
from pathlib import Path

from launcher import mail_previews
from mesh.paths import ROOT


def test_every_mail_is_on_the_page(tmp_path: Path) -> None:
    page = mail_previews.write(tmp_path / "mails.html").read_text()
    samples = list(mail_previews.samples())
    assert page.count("<iframe") == 2 * len(samples)
    folder = ROOT / "booking_svc" / "notifications" / "templates"
    written = {path.stem for path in folder.glob("*.html")} - {"booking", "waiting_list"}
    shown = {sample.name.split(",")[0].split(" by ")[0] for sample in samples}
    assert {name.replace("_", " ") for name in written} <= shown


def test_no_sample_lacks_a_value() -> None:
    for sample in mail_previews.samples():
        for text in (sample.mail.subject, sample.mail.text, sample.mail.html):
            assert "None" not in text
            assert not re.search(r"{[{%#]|[}%#]}", text.replace("%;", ""))
        assert "\n\n\n" not in sample.mail.text
        assert "," not in sample.mail.subject[-1]
