"""The reference of settings, and the document made from it."""

from __future__ import annotations

from pathlib import Path

from cgrseg.config import Config, describe_fields, load_config, setting_lines
from cgrseg.config.reference import markdown_reference


def test_every_setting_is_described() -> None:
    fields = describe_fields()
    assert len({field.path for field in fields}) == len(fields)
    for field in fields:
        assert len(field.description) > 5, field.path
        assert field.description.endswith((".", ")")), field.path
        assert "typing" not in field.accepts, field.path
        assert "<" not in field.accepts, field.path


def test_descriptions_match_the_schema() -> None:
    by_path = {field.path: field for field in describe_fields()}
    assert by_path["optimizer.lr"].accepts == "a number greater than 0 and at most 1000"
    assert by_path["optimizer.lr"].default == "0.00012"
    assert by_path["augment.crop_size"].default == "[512, 512]"
    assert by_path["augment.photometric.hue"].accepts == "a whole number from 0 to 90"
    assert by_path["model.pretrained"].accepts == "text, or null"
    assert by_path["data.drop"].accepts == "a list of texts"


def test_setting_lines_show_what_differs() -> None:
    changed = load_config("cgrseg-t_ade20k_160k", ["optimizer.lr=1e-3", "test.flip=true"])
    assert setting_lines(changed, against=Config()) == ["test.flip = true", "optimizer.lr = 0.001"]
    assert len(setting_lines(changed)) == len(describe_fields())


def test_document_holds_the_reference_as_it_is_now(repository: Path) -> None:
    """Mend with: python scripts/update_references.py."""
    document = (repository / "docs" / "configuration.md").read_text(encoding="utf-8")
    _, _, rest = document.partition("<!-- reference: begin -->\n")
    reference, end, _ = rest.partition("<!-- reference: end -->")
    assert end
    assert reference.strip() == markdown_reference().strip()
