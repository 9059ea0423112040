"""What there is to train on: the registered task families, described for people."""

import sys
import textwrap

import gymnasium as gym
from rich.console import Console
from rich.table import Table

from metarl.evaluation import reference_players
from metarl.plain import field_sentences, first_sentence
from metarl_envs import TaskFamily, families, make_family


def print_families() -> None:
    """Print every registered family: its trial, splits, whether a ceiling is known, and how many classical players."""
    known = {env_id: make_family(env_id) for env_id in families()}
    width = max(map(len, known)) + 2
    print(f"{'family'.ljust(width)}{'trial':25}{'splits':18}ceiling   classical players")
    for env_id, family in known.items():
        ceiling = "known" if _has_ceiling(family) else "-"
        splits, players = ", ".join(family.splits), len(reference_players(family))
        special = ", ".join(f"{name} = {value}" for name, value in gym.spec(env_id).kwargs.items() if name != "family")
        what = first_sentence(type(family)) + (f" Here {special}." if special else "")
        print(f"\n{env_id.ljust(width)}{_trial(family):25}{splits:18}{ceiling:10}{players}")
        print(textwrap.fill(what, 110, initial_indent="  ", subsequent_indent="  "))
    print("\nParameters of a family, and its players: metarl envs ID")


def print_family(env_id: str, family: TaskFamily) -> None:
    """Print what one family is, and each of its parameters with its default and meaning."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in {
        "trial": _trial(family),
        "splits": ", ".join(family.splits),
        "observations": str(family.observation_space),
        "actions": str(family.action_space),
        "ceiling": "known" if _has_ceiling(family) else "not known",
        "classical players": ", ".join(player.name for player in reference_players(family)),
    }.items():
        facts.add_row(name, value)
    parameters = Table("option", "default", "meaning", box=None, padding=(0, 2, 0, 0))
    for name, sentence in field_sentences(type(family)).items():
        parameters.add_row(f"--env.{name.replace('_', '-')}", str(getattr(family, name)), sentence)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False, markup=False)
    console.print(f"{env_id}: {first_sentence(type(family))}", "", facts, "", parameters, sep="\n")


def _trial(family: TaskFamily) -> str:
    steps = family.max_episode_steps
    return f"{family.episodes_per_trial:,} episodes x {steps:,} step{'s' if steps > 1 else ''}"


def _has_ceiling(family: TaskFamily) -> bool:
    return family.ceiling(family.sample(1, "test", 0)) is not None
