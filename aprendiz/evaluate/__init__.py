"""What was learned: before and after in pictures, the loss as a curve, and figures where something can judge them."""
