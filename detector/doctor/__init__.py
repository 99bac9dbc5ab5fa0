"""What is right, what is wrong and what to do, in the order in which a sample travels."""
