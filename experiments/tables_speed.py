"""Tables of speeds, a part for each machine."""

from collections.abc import Callable
from functools import partial

from result_files import by_machine


def speed(result: dict) -> str:
    """Steps per second beside sb3-contrib's RecurrentPPO."""
    columns = [name for name in result["rows"][0] if name not in ("num_envs", "shares")]
    lines = [f"| environments | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in result["rows"]:
        lines.append(f"| {row['num_envs']} | " + " | ".join(f"{row[column]:,.0f}" for column in columns) + " |")
    for ours, against in result["ratios"].items():
        cells = [f"{against[column]:.1f} x" if column in against else "" for column in columns]
        lines.append(f"| {ours}, best against best | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed_maml(result: dict) -> str:
    """Meta-iterations per second beside the usual arrangement."""
    columns = list(result["rows"][0]["speeds"])
    lines = [f"| setting | {' | '.join(columns)} | best here / usual | target |", "|---|" + "---|" * (len(columns) + 2)]
    for row in result["rows"]:
        cells = " | ".join(f"{row['speeds'][column]:.2f}" for column in columns)
        best = max(ratio for name, ratio in row["ratios"].items() if "here" in name)
        mark = "reached" if best >= row["target"] else "NOT reached"
        lines.append(f"| {row['setting']} | {cells} | {best:.1f} x | >= {row['target']:g} x, {mark} |")
    return "\n".join(lines)


def speed_mujoco(result: dict) -> str:
    """Environment steps per second beside MuJoCo alone and Gymnasium's processes."""
    columns = list(result["rows"][0]["speeds"])
    lines = [f"| robot | {' | '.join(columns)} | of bare | x AsyncVectorEnv |", "|---|" + "---|" * (len(columns) + 2)]
    for row in result["rows"]:
        cells = " | ".join(f"{row['speeds'][column]:,.0f}" for column in columns)
        marks = []
        for key, shown in (("of_bare", "{:.2f}"), ("of_async", "{:.1f}")):
            target = result["targets"][key]
            marks.append(f"{shown.format(row[key])} (>= {target:g}, {'reached' if row[key] >= target else 'NOT reached'})")
        lines.append(f"| {row['robot']} | {cells} | {' | '.join(marks)} |")
    return "\n".join(lines)


def speed_memory_cores(result: dict) -> str:
    """Cost of a step beside the LSTM's."""
    lines = [
        "| core | parameters | learning, µs per step | x LSTM | acting, µs per step | x LSTM |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['core']} | {row['parameters']:,} | {row['learning_us']:.2f} | {row['learning_ratio']:.1f} "
            f"| {row['acting_us']:.2f} | {row['acting_ratio']:.1f} |"
        )
    return "\n".join(lines)


def speed_optimizers(result: dict) -> str:
    """What one step of each optimizer costs."""
    lines = ["| optimizer | microseconds per step | x fused Adam |", "|---|---|---|"]
    for row in result["rows"]:
        lines.append(f"| {row['optimizer']} | {row['step_us']:.0f} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def speed_sinusoid(result: dict) -> str:
    """Meta-iterations per second."""
    lines = ["| | meta-iterations per second | x loop |", "|---|---|---|"]
    for name, speed in result["per_second"].items():
        lines.append(f"| {name} | {speed:.0f} | {result['ratios'].get(name, 1.0):.1f} |")
    return "\n".join(lines)


SPEEDS: dict[str, Callable[[], str]] = {
    "speed": partial(by_machine, "speed_recurrent_ppo.json", speed),
    "speed_maml": partial(by_machine, "speed_maml.json", speed_maml),
    "speed_sinusoid": partial(by_machine, "speed_sinusoid.json", speed_sinusoid),
    "speed_mujoco": partial(by_machine, "speed_mujoco.json", speed_mujoco),
    "speed_memory_cores": partial(by_machine, "speed_memory_cores.json", speed_memory_cores),
    "speed_optimizers": partial(by_machine, "speed-optimizers.json", speed_optimizers),
}
