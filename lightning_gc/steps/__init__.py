"""What happens around one optimizer's step, with no Trainer."""
