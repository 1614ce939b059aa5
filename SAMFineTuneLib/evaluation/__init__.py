"""How a model behaves on annotated cases: the protocols of three studies, baselines, statistics, a report.

| module | its idea |
|---|---|
| `objects` | what is asked for: connected pieces of labels on slices |
| `prompts`, `perturbation`, `draws` | what is asked with: strategies S2 to S6 of COSMOS, prompts out of place, random numbers |
| `methods`, `baselines` | who is asked: models, adapters, methods without learning |
| `metrics`, `factors` | what is measured on an answer, and on an object |
| `prompting`, `interactive`, `volumes`, `automatic` | the protocols; each yields rows |
| `rows`, `work`, `engines`, `run` | the table of rows; the list of work, who does it, resuming |
| `statistics`, `annotator`, `tables`, `figures`, `overlays`, `report` | what the rows say |

The protocols are those of COSMOS 1050K (Huang et al. 2023, arXiv 2304.14660) for prompts, perturbations and object
factors, and of MedicoSAM (Archit et al. 2025, arXiv 2501.11734) for corrections and volumes. Needs no PyTorch unless a
method does; SciPy, scikit-image and matplotlib are loaded inside functions.
"""  # noqa: E501
