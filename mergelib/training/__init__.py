"""Fine-tuning: f_b to experts f_1 ... f_T."""
