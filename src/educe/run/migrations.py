"""Migrations: what brings a run's file of an older educe up to the tables of this one, by number.

Each turns the tables of one version into those of the next; `educe.run.store.Run.open` applies all
that a file lacks, in one transaction.
"""

from __future__ import annotations

import sqlite3

#: The version of the tables of `educe.run.schema`.
SCHEMA_VERSION = 3

#: By the version that a file has, what it lacks of the next one.
#:
#: 1  Texts had no phase, but samples from 1000 on in the re-test; they were kept when they were
#:    written. What stood beside a text (log-probability, behaviour) had tables of its own, and so
#:    had responses to the radius, which are perturbations now. How a text is embedded is not kept,
#:    and the digest of a model's configuration was another one.
#: 2  Prompts had no parent.
MIGRATIONS = {
    1: """
ALTER TABLE perturbations RENAME TO perturbations_1;
ALTER TABLE completions RENAME TO completions_1;
ALTER TABLE scores RENAME TO scores_1;
CREATE TABLE perturbations (
  id INTEGER PRIMARY KEY,
  parent INTEGER REFERENCES perturbations (id),
  how TEXT NOT NULL,
  arm TEXT NOT NULL,
  method TEXT NOT NULL,
  file TEXT NOT NULL,
  item INTEGER NOT NULL,
  radius REAL NOT NULL,
  dose REAL NOT NULL,
  effect REAL NOT NULL
);
INSERT INTO perturbations
  SELECT id, NULL, '', arm, method, file, item, radius, dose, effect FROM perturbations_1;
INSERT INTO perturbations (parent, how, arm, method, file, item, radius, dose, effect)
  SELECT id, 'scaled', arm, method, file, item, r.radius, dose * r.radius / p.radius, r.effect
  FROM responses r JOIN perturbations_1 p ON p.id = r.perturbation
  WHERE r.radius <> p.radius ORDER BY id, r.radius;
CREATE TABLE completions (
  id INTEGER PRIMARY KEY,
  perturbation INTEGER NOT NULL,
  prompt INTEGER NOT NULL REFERENCES prompts (id),
  phase TEXT NOT NULL,
  sample INTEGER NOT NULL,
  temperature REAL NOT NULL,
  text TEXT,
  tokens TEXT,
  finished INTEGER,
  UNIQUE (perturbation, prompt, phase, sample)
);
INSERT INTO completions (perturbation, prompt, phase, sample, temperature, text, tokens, finished)
  SELECT perturbation, prompt, iif(sample < 1000, 'first', 'retest'), sample % 1000, temperature,
         text, tokens, finished
  FROM completions_1 ORDER BY perturbation, prompt, sample;
CREATE TABLE scores (
  completion INTEGER REFERENCES completions (id),
  perturbation INTEGER,
  judge TEXT NOT NULL,
  value REAL,
  unit TEXT NOT NULL,
  why TEXT NOT NULL,
  CHECK ((completion IS NULL) <> (perturbation IS NULL))
);
CREATE UNIQUE INDEX of_completion ON scores (completion, judge) WHERE completion IS NOT NULL;
CREATE UNIQUE INDEX of_perturbation ON scores (perturbation, judge) WHERE perturbation IS NOT NULL;
INSERT INTO scores
  SELECT c.id, NULL, judge, value, unit, why
  FROM (
    SELECT perturbation, prompt, sample, judge, value,
           CASE judge WHEN 'coherence' THEN 'coherent'
           WHEN 'novelty' THEN 'unlike the unperturbed model' ELSE '' END AS unit, why
    FROM scores_1 WHERE prompt >= 0
    UNION ALL
    SELECT perturbation, prompt, sample, 'logprob', logprob, 'nats a token', '' FROM readings
    UNION ALL
    SELECT perturbation, prompt, sample, 'behaviour', behaviour, 'number', '' FROM behaviours
  ) s JOIN completions c ON (c.perturbation, c.prompt, c.phase, c.sample)
    = (s.perturbation, s.prompt, iif(s.sample < 1000, 'first', 'retest'), s.sample % 1000);
INSERT INTO scores
  SELECT NULL, perturbation, iif(judge = 'constancy', 'prompt_invariance', judge), value,
         CASE judge WHEN 'side_effect' THEN 'nats'
         WHEN 'constancy' THEN 'the same whatever is asked' ELSE '' END, why
  FROM scores_1 WHERE prompt < 0;
INSERT INTO meta SELECT 'began', min(at) FROM events HAVING count(*) > 0;
UPDATE meta SET value = json_set(value, '$.baseline', 8) WHERE key = 'config';
UPDATE meta SET value = json_remove(value, '$.configuration') WHERE key = 'model-parts';
DROP TABLE scores_1;
DROP TABLE completions_1;
DROP TABLE perturbations_1;
DROP TABLE readings;
DROP TABLE behaviours;
DROP TABLE responses;
DROP TABLE events;
""",
    2: """
ALTER TABLE prompts ADD COLUMN parent INTEGER REFERENCES prompts (id);
ALTER TABLE prompts ADD COLUMN how TEXT NOT NULL DEFAULT '';
""",
}


def migrate(database: sqlite3.Connection, version: int) -> None:
    """Bring the tables of a file up to this version, wholly or not at all.

    Args:
        database: The file.
        version: That it has, one of `MIGRATIONS` or this one.
    """
    steps = [MIGRATIONS[number] for number in range(version, SCHEMA_VERSION)]
    if steps:
        whole = "".join(["BEGIN IMMEDIATE;", *steps, f"PRAGMA user_version = {SCHEMA_VERSION};"])
        try:
            database.executescript(whole)
            database.commit()
        except BaseException:
            database.rollback()
            raise
