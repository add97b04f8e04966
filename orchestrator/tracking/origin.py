"""What MLflow's page of a model says of where it comes from: MLflow names its run, and not what that run read."""

from collections.abc import Iterator

from orchestrator.artifacts import Artifact
from orchestrator.tracking.ledger import read_ledger, told_model
from orchestrator.tracking.story import Link, Story

DESCRIPTION = "mlflow.note.content"
SHOWN = 12  # digits of a digest that people see


def origin_tags(story: Story, uri: str) -> dict[str, str]:
    """Returns the tags of a model that a stage made: its inputs, those of them that are models, and a description.

    The description is Markdown with links to the pages of these models in the MLflow at `uri`.
    """
    lines = list(_lines(story, uri))
    maker = f"stage `{story.name}` (`{story.stage}`) of the recipe `{story.tags['orch.recipe']}`"
    given = ", from:\n\n" + "\n".join(lines) if lines else "; it reads nothing that another stage made."
    return {
        **{name: value for name, value in story.tags.items() if name.startswith(("orch.input.", "orch.commit"))},
        **{f"orch.input.{link.name}.model": f"models:/{told}" for link in story.inputs if (told := _model(link, uri))},
        DESCRIPTION: f"Made by {maker}{given}",
    }


def _lines(story: Story, uri: str) -> Iterator[str]:
    for link in story.inputs:
        model, title = _model(link, uri), link.title.replace("`", "'")
        if model:
            place = f"#/experiments/{read_ledger(link.path.parent)['experiment_id']}/models/{model}"
            title = f"[{title}]({place})"
        digest = Artifact(link.path).digest()[:SHOWN]
        yield f"- {link.name}: {title} ({link.kind}{f', digest `{digest}`' if digest else ''})"


def _model(link: Link, uri: str) -> str | None:
    return told_model(link.path, uri) if link.kind in ("checkpoint", "export") else None
