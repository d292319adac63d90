"""The paper, one short file per table or figure."""
