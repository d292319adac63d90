"""From records to tables, verdicts, pictures and the page of them all."""
