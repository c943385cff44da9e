package main

// Numbers that the syscall package lacks, from arch/x86/entry/syscalls/syscall_64.tbl.
const (
	sysBPF            = 321
	sysEventfd2       = 290
	sysFinitModule    = 313
	sysKexecFileLoad  = 320
	sysLgetxattr      = 192
	sysLinkat         = 265
	sysLlistxattr     = 195
	sysLremovexattr   = 198
	sysLsetxattr      = 189
	sysMemfdCreate    = 319
	sysNameToHandleAt = 303
	sysPerfEventOpen  = 298
	sysRenameat2      = 316
	sysSignalfd4      = 289
	sysStatx          = 332
	sysSyncfs         = 306
	sysTimerfdCreate  = 283
)
