"""Attack campaign: crashes, damage, hostile files and neighbours against the whole program.

`python -m attack` runs it; a module of this package is one class of attacks and has a function
`cases`.
"""
