"""Plans as text, JSON, SVG and files for other supervisors."""
