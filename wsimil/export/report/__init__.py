"""What is written of judged answers: metrics.json, one HTML page that needs no network, and a model card."""
