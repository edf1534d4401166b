"""From a trained model to answers: predictions, what they rest on, and how good they are."""
