"""Operations: what operators ask for, carried out."""
