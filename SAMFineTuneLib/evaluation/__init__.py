"""How a model behaves on annotated cases: the protocols of published studies, baselines, statistics, a report.

| module | what it does |
|---|---|
| `objects` | the objects to segment: connected pieces of labels on slices |
| `methods`, `baselines` | models, adapters and methods without learning, which all answer the same prompts |
| `factors` | size, contrast and complexity of an object |
| `slice_protocols`, `volume_protocol`, `automatic_protocol` | the protocols; each yields rows |
| `result_rows`, `evaluation_tasks`, `executors`, `evaluation_run` | the rows; the list of jobs; running and resuming them |
| `annotator`, `result_table`, `tables`, `volume_tables`, `figures`, `example_pictures`, `evaluation_report` | what the report shows |

Prompts, perturbations and object factors follow COSMOS 1050K (Huang et al. 2023, arXiv 2304.14660), corrections and
volumes MedicoSAM (Archit et al. 2025, arXiv 2501.11734). Needs no PyTorch unless a method does; SciPy, scikit-image and
matplotlib are loaded inside functions.
"""  # noqa: E501
