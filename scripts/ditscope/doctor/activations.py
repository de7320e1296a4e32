"""Checks of activation statistics."""

from ditscope.activation_table import CHANNELS, NAME
from ditscope.doctor.study import Study
from ditscope.patterns import select_indices


def check_activations(study: Study) -> None:
    """Every layer has statistics of every step that was asked for, of every image and channel."""
    settings = study.config.calibrate
    columns = f"model layer step_index sigma n channels absmax outliers {' '.join(CHANNELS)}"
    for file in study.targets("calibrate"):
        table = study.table("calibrate", file, NAME, columns) if file.endswith(".parquet") else None
        if table is None:
            continue
        model = file.split("/")[1]
        study.same_rows("calibrate", file, sorted(set(table["model"])), [model] if len(table) else [], "models")
        steps = settings.num_steps or study.config.models[model].steps
        wanted = select_indices(settings.statistics, steps, "calibrate.statistics") if settings.statistics else []
        cells = [(layer, step) for layer in table["layer"].unique() for step in wanted]
        found = sorted(table.select("layer", "step_index").rows())
        study.same_rows("calibrate", file, found, sorted(cells), "layers and steps")
        if (table["n"] % settings.num_images != 0).any():
            study.note("calibrate", file, f"{table['n'][0]} samples of a layer, of {settings.num_images} images")
        for name in CHANNELS:
            if (table[name].list.len() != table["channels"]).any():
                study.note("calibrate", file, f"column `{name}` has not one value a channel")
