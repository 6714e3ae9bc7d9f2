"""MLflow: recording runs, comparing them, and registering their encoders; plots."""
