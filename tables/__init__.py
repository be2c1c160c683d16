"""Tables as data: specs, the paper's printed values, records in, markdown and CSV out. No torch."""
