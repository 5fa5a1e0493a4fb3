"""Terminal output, plots and the report page of a study."""
