"""Operations on packed bags: they depend on torch alone and know nothing of slides, models or configs."""
