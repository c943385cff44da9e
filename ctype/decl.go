package ctype

func declare(t Type, name string) string { return t.Name() + name }
