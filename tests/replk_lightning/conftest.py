"""Being here it puts model_samples.py and process_states.py on the path of the tests in all folders below."""
