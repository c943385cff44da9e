package main

const elfMachine = 62 // EM_X86_64

// Machine code for the tiny programs.
var (
	pauseCode = []byte{
		0xb8, 34, 0, 0, 0, // mov eax, SYS_pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // again, after a stop or a handled signal
	}
	exitCode = []byte{
		0x31, 0xff, // xor edi, edi
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x0f, 0x05, // syscall
	}
)
