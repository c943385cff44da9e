package main

const (
	elfMachine = 3 // EM_386
	elfFlags   = 0
)

// Machine code for the tiny programs.
var (
	pauseCode = []byte{
		0xb8, 29, 0, 0, 0, // mov eax, SYS_pause
		0xcd, 0x80, // int 0x80
		0xeb, 0xf7, // again, after a stop or a handled signal
	}
	exitCode = []byte{
		0x31, 0xdb, // xor ebx, ebx
		0xb8, 1, 0, 0, 0, // mov eax, SYS_exit
		0xcd, 0x80, // int 0x80
	}
)
