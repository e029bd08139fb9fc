"""The student as a product: exported, checked, measured and described; behind export_student.py and predict.py."""
