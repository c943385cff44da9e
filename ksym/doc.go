// Package ksym knows a kernel's symbols: names and addresses of its functions
// and variables, without any file from the guest.
//
// A Linux kernel carries its own symbol table, kallsyms (kernel/kallsyms.c,
// written by scripts/kallsyms.c), compressed in its read-only data. Find
// searches physical memory for it; At reads it where VMCOREINFO, another text
// that lies in the memory of every kernel with crash-dump support, says it is.
// Neither is trusted: a Table exists only if its parts prove each other.
//
// Three arrangements of the same blocks occur from Linux 5.10 on, see Layout;
// which one a kernel uses is told by what fits, never by its version.
//
// Symbols of modules come from ParseModuleSymbols, and a System.map or the
// symbol table of an ELF file becomes a List, with the same lookups.
//
// All types are immutable once built and safe for concurrent use.
package ksym
