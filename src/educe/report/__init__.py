"""What people look at: tables on the terminal, and one self-contained HTML file."""
