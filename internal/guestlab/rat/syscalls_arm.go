package main

// Numbers that the syscall package lacks, from arch/arm/tools/syscall.tbl.
const (
	sysBPF            = 386
	sysEventfd2       = 356
	sysFinitModule    = 379
	sysKexecFileLoad  = 401
	sysLgetxattr      = 230
	sysLinkat         = 330
	sysLlistxattr     = 233
	sysLremovexattr   = 236
	sysLsetxattr      = 227
	sysMemfdCreate    = 385
	sysNameToHandleAt = 370
	sysPerfEventOpen  = 364
	sysRenameat2      = 382
	sysSignalfd4      = 355
	sysStatx          = 397
	sysSyncfs         = 373
	sysTimerfdCreate  = 350
)
