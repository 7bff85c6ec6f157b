"""What a user was promised, tried as a user would."""
