package main

// Numbers that the syscall package lacks, from include/uapi/asm-generic/unistd.h.
const (
	sysBPF            = 280
	sysEventfd2       = 19
	sysFinitModule    = 273
	sysKexecFileLoad  = 294
	sysLgetxattr      = 9
	sysLinkat         = 37
	sysLlistxattr     = 12
	sysLremovexattr   = 15
	sysLsetxattr      = 6
	sysMemfdCreate    = 279
	sysNameToHandleAt = 264
	sysPerfEventOpen  = 241
	sysRenameat2      = 276
	sysSignalfd4      = 74
	sysStatx          = 291
	sysSyncfs         = 267
	sysTimerfdCreate  = 85
)
