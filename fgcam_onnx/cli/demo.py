"""``fgcam demo``: a first picture in one command, from the models and pictures that ship with this package.

Two small networks with the same layers answer what a drawing shows. The honest one learned the shapes; the other
learned to read a badge in the corner. Both give the same answer on a badged picture, and the maps tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgcam_onnx.cli import say
from fgcam_onnx.cli.explain import account

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fgcam_onnx import Explainer, Explanation
    from fgcam_onnx.imaging import Cell
    from fgcam_onnx.models import Picture

_TILE = 208


def demo(
    folder: Annotated[Path, typer.Option("--folder", "-o", help="The folder for the pictures.")] = Path("fgcam_demo"),
    method: Annotated[str, typer.Option("--method", "-m", help="The name of a method.")] = "fg-grad-cam",
    json: say.Json = False,
    debug: say.Debug = False,
) -> None:
    """Explain the pictures that ship with this package: a short story in numbers, and a poster."""
    from fgcam_onnx import Explainer, models
    from fgcam_onnx.explanation import Folder, png

    pictures = models.pictures()
    with Folder(folder) as pictured:
        honest, cheat = (_Network(name, Explainer(models.path(file)), method) for name, file in _networks())
        two = {p.path.stem: [honest.why(p, label) for label in p.classes] for p in pictures if len(p.classes) > 1}
        tagged = {p.path.stem: [network.why(p) for network in (honest, cheat)] for p in pictures if p.tag is not None}
        pictured.write({"poster.png": png(_poster(two, tagged, method))})
        for sight in (s for group in (*two.values(), *tagged.values()) for s in group):
            pictured.write({f"{sight.name}.png": png(sight.panel())})
        record = {
            "method": method,
            "classes": [sight.record() for group in two.values() for sight in group],
            "badges": [sight.record() for group in tagged.values() for sight in group],
        }
        pictured.finish(record)
    if json:
        say.as_json({**record, "output": str(folder)})
    else:
        _tell(two, tagged, folder)


def _networks() -> list[tuple[str, str]]:
    from fgcam_onnx import models

    return [("honest", models.HONEST), ("cheat", models.CHEAT)]


@dataclass(frozen=True)
class _Network:
    name: str
    explainer: Explainer
    method: str

    def why(self, picture: Picture, label: str | None = None) -> _Sight:
        """One explanation: of a class, or of the network's own answer."""
        import numpy as np

        from fgcam_onnx import imaging
        from fgcam_onnx.preprocessing import choose

        x = self.explainer
        recipe = choose(metadata=x.metadata, path=x.path, input_shape=x.input_shape, layout=x.layout)
        array, shown = recipe.apply(imaging.read(picture.path))
        e = x.explain(np.stack([array]), target=label, method=self.method)
        labels = x.labels or []
        return _Sight(self.name, picture, e, shown, labels[int(e.target[0])] if labels else str(e.target[0]))


@dataclass(frozen=True)
class _Sight:
    """What one network saw in one picture."""

    network: str
    picture: Picture
    explanation: Explanation
    shown: npt.NDArray[np.uint8]
    answer: str

    @property
    def name(self) -> str:
        return f"{self.picture.path.stem}.{self.network}.{self.answer}"

    @property
    def probability(self) -> float:
        return float(self.explanation.probabilities[0, self.explanation.target[0]])

    def share(self, mask: npt.NDArray[np.bool_]) -> float:
        """The share of the positive relevance that lies on a mask ``[H, W]``."""
        import numpy as np

        from fgcam_onnx.imaging import resize

        positive = resize(np.maximum(self.explanation.relevance, 0), mask.shape)[0]
        return float(positive[mask].sum() / positive.sum()) if positive.any() else 0.0

    def shares(self) -> dict[str, float]:
        found = {label: self.share(sight.mask) for label, sight in self.picture.objects.items()}
        return found if self.picture.tag is None else {**found, "badge": self.share(self.picture.tag.mask)}

    def where(self, each: str = "{share} on the {thing}", between: str = ", ") -> str:
        """``91 % on the fish, 3 % on the sailboat``."""
        return between.join(each.format(thing=t, share=f"{100 * share:.0f} %") for t, share in self.shares().items())

    def record(self) -> dict[str, Any]:
        leaked, in_map, residual = account(self.explanation, 0)
        return {
            "picture": self.picture.path.stem,
            "network": self.network,
            "class": self.answer,
            "probability": self.probability,
            "shares": self.shares(),
            "ledger": {"leaked": leaked, "in_map": in_map, "residual": residual},
        }

    def tile(self, caption: str) -> Cell:
        from fgcam_onnx.imaging import Cell, draw, fit

        return Cell(draw(fit(self.shown, _TILE), self.explanation.relevance[0]).overlay, caption)

    def panel(self) -> Any:
        from fgcam_onnx.imaging import panel

        e = self.explanation
        return panel(
            self.shown,
            e.relevance[0],
            title=f"{self.answer}   p = {self.probability:.3f}",
            lines=[f"{self.network} network · {e.method} · map at {e.layer} · L = {e.start}", self.where()],
            footer=f"{self.picture.path.stem} · fgcam demo",
        )


Story = dict[str, list[_Sight]]


def _poster(two: Story, tagged: Story, method: str) -> Any:
    """The first two pictures of each kind, three tiles each: the picture and two reasons."""
    from fgcam_onnx.imaging import Bar, Cell, Row, fit, grid

    def row(groups: list[list[_Sight]], first: Callable[[_Sight], str], then: Callable[[_Sight], str]) -> list[Cell]:
        cells: list[Cell] = []
        for sights in groups:
            cells.append(Cell(fit(sights[0].shown, _TILE), first(sights[0]), space=26 if cells else 0))
            cells += [sight.tile(f"{then(sight)}\n{sight.where('{thing} {share}', ' · ')}") for sight in sights]
        return cells

    classes = row(list(two.values())[:2], lambda _: "the picture\n ", lambda s: f"why {s.answer}?")
    badges = row(
        list(tagged.values())[:2],
        lambda s: f"the picture\nbadge: {s.picture.tag.label if s.picture.tag else 'none'}",
        lambda s: f"{s.network}: {s.answer} {s.probability:.2f}",
    )
    if badges:
        badges[-1] = replace(badges[-1], bar=Bar("ember", "none", "most"))
    return grid(
        [
            Row(
                classes,
                "Ask for another class, and the map moves",
                "The honest network, asked twice about one picture.",
            ),
            Row(badges, "The same answer, another reason", "The cheat learned to read the badge in the corner."),
        ],
        title="What did the network look at?",
        lines=[f"{method} at the input: where the positive relevance lies, in per cent"],
        footer="fgcam demo · two networks of the same layers and the pictures that ship with fgcam_onnx",
        tile=_TILE,
    )


def _tell(two: Story, tagged: Story, folder: Path) -> None:
    sights = [sight for group in (*two.values(), *tagged.values()) for sight in group]

    def heading(text: str) -> None:
        typer.echo("\n" + say.style(text, bold=True))

    typer.echo("Two small networks, trained for this demo, and the pixels behind their answers.")
    heading("Ask for another class, and the map moves  (the honest network)")
    for name, group in two.items():
        for i, sight in enumerate(group):
            typer.echo(f"  {'' if i else name:<22}why {sight.answer + '?':<12}{sight.where()}")
    heading("Same answer, another reason  (the cheat learned to read the badge in the corner)")
    for name, group in tagged.items():
        for i, sight in enumerate(group):
            answer = f"{sight.network} says {sight.answer} {sight.probability:.2f}"
            typer.echo(f"  {'' if i else name:<22}{answer:<30}{sight.where()}")
    leaked = max(account(sight.explanation, 0)[0] for sight in sights)
    residual = max(account(sight.explanation, 0)[2] for sight in sights)
    lost = f"{100 * leaked:.2g} % leaked on the way" if leaked else "nothing leaked on the way"
    typer.echo(f"\nEvery unit of relevance is accounted for: {lost}, {residual:.0e} of it unexplained.")
    typer.echo(f"Look at {folder / 'poster.png'}, then try your own: fgcam explain MODEL.onnx PHOTO.jpg")
