"""What users report of the recommendations that they were given: counted, and compared."""
