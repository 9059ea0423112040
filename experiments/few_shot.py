"""Few-shot learners side by side, on unseen scripts, topics, digits and curves.

    python experiments/few_shot.py glyphs-5w1s
    python experiments/few_shot.py sinusoids --learners maml meta_sgd --seeds 0 1 2

Problems and what differs between learners are below. Learners are trained for as many episodes, chosen for minutes, and
scored at the end of training on the same 1,000 test episodes. What was trained on one shot is scored with five as well, on
20 ways where the learner takes any number, and what learned letters on digits. Runs live in
`runs/few_shot/PROBLEM-LEARNER-seedS` and are continued there. Result: `experiments/results/fewshot-PROBLEM.json`, a row for
each learner and seed.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reproduce import RESULTS, train_run

from metarl.checkpoint import write_atomically
from metarl.evaluation.few_shot import FewShotScores
from metarl.fewshot import EpisodeSource, FewShotConfig, evaluate_learner, make_learner, make_source
from metarl.fewshot.learners import LEARNERS
from metarl.fewshot.recurrent import MemoryLearner, accuracy_by_instance
from metarl.fewshot_runs import load_few_shot_run
from metarl.updates import Diverged

RUNS = Path("runs/few_shot")
EPISODES = 1_000
INSTANCES = 10
"""Of each class, in sequences that are scored by how often a class has come."""


@dataclass(frozen=True)
class FewShotProblem:
    """What learners are compared on.

    Args:
        settings: of all, fields of `FewShotConfig`.
        learners: those compared, with their own settings on top.
        untrained: learners that nothing is learned for.
        trained_on: the problem whose runs are scored here, where a learner can do with these tasks what it learned in those.
        steps: gradient steps after which gradient learners are scored too.
        queries: of each class, or curve, in test episodes.
        batch: episodes scored at once: fewer where the parameters of one are many.
    """

    settings: Mapping[str, Any]
    learners: Mapping[str, Mapping[str, Any]]
    untrained: Sequence[str] = ("nearest_neighbour", "from_scratch")
    steps: Sequence[int] = ()
    queries: int = 15
    batch: int = 20
    trained_on: str | None = None

    @property
    def source(self) -> EpisodeSource:
        """Where episodes come from; tests ask more of each class than trainings."""
        sizes = {name: self.settings[name] for name in ("ways", "shots") if name in self.settings}
        return make_source(
            self.settings["dataset"], options=self.settings.get("dataset_kwargs"), queries=self.queries, **sizes
        )

    def config(self, learner: str, seed: int) -> FewShotConfig:
        """The training of one learner."""
        return FewShotConfig(**{**self.settings, **self.learners[learner], "seed": seed})


def curves(shots: int) -> FewShotProblem:
    """MAML's regression, 25 tasks at a time, with 15 queries: with as many as shots, errors after many steps are higher."""
    common = {"batch": 25, "learning_rate": 2e-3, "final_learning_rate": 5e-5, "compile": True}
    eager = {**common, "compile": False}
    # a context of 32 steps, the default, costs several times as much
    kwargs = {"fine_tuning": {"steps": 10}, "snail": {"core_kwargs": {"context": 2 ** shots.bit_length()}}}
    names = (
        "reptile",
        "leo",
        "lstm_meta_learner",
        "learned_update",
        "matching",
        "mann",
        "snail",
        "meta_networks",
        "hypernetwork",
        "fine_tuning",
        "averaging",
    )
    others = {
        name: {"hyperparameters": eager, "total_timesteps": 250_000, "learner_kwargs": kwargs.get(name, {})}
        for name in names
    }
    settings = {"dataset": "sinusoids", "shots": shots, "queries": 15, "total_timesteps": 1_500_000}
    learners = {name: {"hyperparameters": common, "learner": name} for name in ("maml", "fomaml", "anil", "meta_sgd")}
    # trained by one step as in the paper, it is better after one (.58) and worse, at times without bounds, after many
    learners["maml"] |= {"learner_kwargs": {"steps": 2}, "total_timesteps": 3_000_000}
    learners |= {name: {"learner": name, **changes} for name, changes in others.items()}
    return FewShotProblem(settings, learners, steps=(0, 1, 2, 3, 5, 10), queries=100)


RECALL = {"num_slots": 64, "slot_size": 16, "decay": 0.95, "compiled": True}
"""The memory with which `supervised_memory.py` recalls points."""


def pictures(
    ways: int,
    shots: int,
    dataset: str = "glyphs",
    episodes: int = 8_000,
    trained_on: str | None = None,
    batch: int = 20,
    sequences: int = 100_000,
    instances: int = INSTANCES,
    **settings: Any,
) -> FewShotProblem:
    """Every learner of classes, with the same network up to the last layer and as many episodes.

    But for MANN, which has a quarter of the channels and is trained on `sequences`, in which each class comes `instances`
    times; and for relation networks, which halve pictures twice only.
    """
    kwargs: dict[str, Mapping[str, Any]] = {
        "maml": {"rate": 0.4, "test_steps": 3},
        "fomaml": {"rate": 0.4, "test_steps": 3},
        "anil": {"rate": 0.4, "steps": 3},
        "meta_sgd": {"rate": 0.4},
        "reptile": {},
        "leo": {},
        "lstm_meta_learner": {"head_only": True},
        "learned_update": {"head_only": True},
        "siamese": {},
        "matching": {},
        "protonet": {},
        "relation": {},
        "mann": {"size": 100, "core_kwargs": RECALL, **({} if dataset == "fortunes" else {"width": 16})},
        "snail": {},
        "meta_networks": {},
        "hypernetwork": {},
        "fine_tuning": {"head_only": True, "update_rule": "adam", "rate": 0.01},
        "averaging": {},
    }
    shared = {"dataset": dataset, "ways": ways, "shots": shots, "queries": 5, "total_timesteps": episodes, **settings}
    rates = dict.fromkeys(("maml", "fomaml", "anil", "meta_sgd"), 2e-3)
    learners = {
        name: {
            "learner": name,
            "learner_kwargs": options,
            "hyperparameters": {"batch": 4, "learning_rate": rates.get(name, 1e-3)},
        }
        for name, options in kwargs.items()
    }
    # it answers at chance for the first tens of thousands of sequences, on points too (`supervised_memory.py recall`)
    many = {"batch": 64, "learning_rate": 2e-3, "final_learning_rate": 5e-4}
    learners["mann"] |= {"queries": instances - shots, "total_timesteps": sequences, "hyperparameters": many}
    return FewShotProblem(shared, learners, batch=batch, trained_on=trained_on)


GLYPHS = {"dataset_kwargs": {"fonts": "noto"}}
AS_LETTERS = {"dataset_kwargs": {"size": 28, "margin": 4}}
"""How digits are shown to what learned letters; chosen on the training digits."""

PROBLEMS = {
    "sinusoids": curves(5),
    "sinusoids-10": curves(10),
    "glyphs-5w1s": pictures(5, 1, sequences=330_000, **GLYPHS),
    "glyphs-5w5s": pictures(5, 5, trained_on="glyphs-5w1s", **GLYPHS),
    "glyphs-20w1s": pictures(20, 1, episodes=2_000, trained_on="glyphs-5w1s", sequences=330_000, instances=3, **GLYPHS),
    "digits-5w1s": pictures(5, 1, "digits", 3_000, dataset_kwargs={"rotations": True}),
    "digits-from-glyphs-5w1s": pictures(5, 1, "digits", trained_on="glyphs-5w1s", **AS_LETTERS),
    "fortunes-5w1s": pictures(5, 1, "fortunes", 3_000, batch=2),
}


def row(scores: FewShotScores, **facts: Any) -> dict[str, Any]:
    """What tables are built from."""
    settings = {f"{kind} {number}".strip(): list(map(float, mean)) for (kind, number), mean in scores.means.items()}
    if scores.accuracy:  # so that learners can be compared episode by episode
        facts["right"] = " ".join(f"{share * scores.queries * scores.outputs:.0f}" for share in scores.scores)
    return {
        "learner": scores.name,
        "scores": settings,
        "episodes": scores.num_episodes,
        "hash": scores.episodes_hash,
        **facts,
    }


def trained_on(name: str, learner: str) -> str:
    """The problem whose run is scored on the problem `name`."""
    other = PROBLEMS[name].trained_on
    if other is None:
        return name
    same = PROBLEMS[name].settings["ways"] == PROBLEMS[other].settings["ways"]
    return other if same or LEARNERS[learner].any_ways else name


def measure(name: str, learner: str, seed: int) -> dict[str, Any]:
    """Train, or go on, and score."""
    torch.set_num_threads(1)
    problem, home = PROBLEMS[name], trained_on(name, learner)
    source = problem.source
    if learner in problem.untrained:
        model, trained = make_learner(learner, source.spec, seed=seed), {"training_episodes": 0, "seconds": 0.0}
    else:
        config, folder = PROBLEMS[home].config(learner, seed), RUNS / f"{home}-{learner}-seed{seed}"
        _, seconds = train_run(config, folder)
        model, trained = load_few_shot_run(folder), {"training_episodes": config.total_timesteps, "seconds": seconds}
        trained["trained_on"] = home
    steps = problem.steps if hasattr(model, "test_steps") else ()
    try:
        scores = evaluate_learner(model, source, name=learner, num_episodes=EPISODES, batch=problem.batch, steps=steps)
    except Diverged as error:  # what is trained for one step need not stand ten
        print(error, flush=True)
        scores = evaluate_learner(model, source, name=learner, num_episodes=EPISODES, batch=problem.batch, steps=steps[:2])
    facts = {
        "seed": seed,
        **trained,
        "cost": dataclasses.asdict(scores.cost),
    }
    if isinstance(model, MemoryLearner) and model.late_labels and source.spec.classification:
        batches = source.resized(queries=INSTANCES - source.shots).stream("test", 20, stop=EPISODES)
        generator = torch.Generator().manual_seed(0)
        by_batch = [accuracy_by_instance(model, batch, generator) for batch in batches]
        facts["by_instance"] = torch.cat(by_batch).mean(0).tolist()
    return row(scores, **facts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and put the rows into the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--learners", nargs="+", help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args(arguments)
    problem = PROBLEMS[options.problem]
    path = RESULTS / f"fewshot-{options.problem}.json"
    for seed in options.seeds:
        for learner in options.learners or [*problem.untrained, *problem.learners]:
            print(f"{options.problem}, {learner}, seed {seed}", flush=True)
            found = measure(options.problem, learner, seed)
            rows = json.loads(path.read_text()) if path.exists() else []
            rows = [one for one in rows if (one["learner"], one["seed"]) != (learner, seed)] + [found]
            rows.sort(key=lambda one: (one["learner"], one["seed"]))
            write_atomically(path, (json.dumps(rows, indent=1) + "\n").encode())
            print({name: round(mean[0], 4) for name, mean in found["scores"].items()}, flush=True)


if __name__ == "__main__":
    main()
