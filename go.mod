module vmscope

go 1.26.0
