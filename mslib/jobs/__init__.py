"""The jobs of a study, called alike by the notebooks and by the command line; here the wings meet."""
