"""What trained models are worth: measures of checkpoints and of videos."""
