"""Speech and phone recognition after SUPERB: a CTC head on the hidden states of a frozen encoder."""
