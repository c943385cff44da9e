package main

// Numbers that the syscall package lacks, from arch/x86/entry/syscalls/syscall_32.tbl.
const (
	sysBPF            = 357
	sysEventfd2       = 328
	sysFinitModule    = 350
	sysKexecFileLoad  = 65535 // there is none: ENOSYS
	sysLgetxattr      = 230
	sysLinkat         = 303
	sysLlistxattr     = 233
	sysLremovexattr   = 236
	sysLsetxattr      = 227
	sysMemfdCreate    = 356
	sysNameToHandleAt = 341
	sysPerfEventOpen  = 336
	sysRenameat2      = 353
	sysSignalfd4      = 327
	sysStatx          = 383
	sysSyncfs         = 344
	sysTimerfdCreate  = 322
)
