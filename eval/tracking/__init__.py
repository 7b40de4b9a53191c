"""Results and trainings on Weights & Biases, in a local trackio project, and their dashboards."""
