"""The zoo: models that people bring, and the run that measures how many of them compile and train."""
