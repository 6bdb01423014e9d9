from pathlib import Path

from trimtab.controller import views
from trimtab.controller.policies.plateau import Plateau
from trimtab.controller.policies.policy import kinds
from trimtab.controller.policies.table import COLUMNS, document, parameters, row

DOCS = Path(__file__).parents[3] / "docs" / "policies.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCS.read_text() == document(), "run make docs"


def test_every_kind_has_its_line() -> None:
    for kind, cls in kinds().items():
        line = row(views.policy_kind(kind, cls))
        assert len(line) == len(COLUMNS)
        assert line[0] == kind


def test_a_line() -> None:
    plateau = views.policy_kind("plateau", Plateau)
    assert row(plateau) == (
        "plateau",
        "Multiply the learning rate by `factor` when a metric has not improved for more than `patience` readings.",
        "val_loss",
        "lr",
        "metric=val_loss, mode=min, factor=0.1, patience=10, threshold=0.0001, threshold_mode=rel, cooldown=0, "
        "min_lr=0, eps=1e-08",
        "PyTorch, torch.optim.lr_scheduler.ReduceLROnPlateau",
    )
    assert parameters(plateau)[3] == (
        "patience",
        "10",
        "readings",
        "Readings without improvement that are tolerated; the next one cuts.",
    )
    assert parameters(plateau)[-1][:2] == ("instead", "–")
