// Package kernel holds the words that all guest kernels share: what a process,
// a module, an open file, a socket is, whatever the kernel that keeps it.
//
// All of it was written by the guest. Texts are bytes that the guest chose.
package kernel

import (
	"time"

	"vmscope/mem"
)

// Process is a process, or one thread of it.
type Process struct {
	PID        int        `json:"pid"`  // of the thread, in the initial PID namespace
	PPID       int        `json:"ppid"` // thread group of the real parent
	TGID       int        `json:"tgid"` // what user space calls the process id
	UID        uint32     `json:"uid"`  // real, in the initial user namespace
	GID        uint32     `json:"gid"`
	EUID       uint32     `json:"euid"`
	EGID       uint32     `json:"egid"`
	Comm       Text       `json:"comm"`
	Cmdline    []Text     `json:"cmdline,omitempty"` // argument vector; nil for kernel threads
	Exe        Text       `json:"exe,omitempty"`     // path of the executable, with " (deleted)" as the kernel prints it
	State      string     `json:"state"`             // one letter, as in ps(1): R S D T t X Z P I
	StartTime  *time.Time `json:"start_time,omitempty"`
	SinceBoot  uint64     `json:"start_ns"` // start, nanoseconds of the boot-time clock
	Threads    int        `json:"threads,omitempty"`
	KThread    bool       `json:"kthread"`
	CGroup     Text       `json:"cgroup,omitempty"`
	Container  Text       `json:"container,omitempty"`
	TaskStruct mem.VA     `json:"task"`           // address of the kernel's object: the key that joins views
	Root       mem.PA     `json:"root,omitempty"` // page-table root; 0 for kernel threads
	// Missing says in words what could not be read, e.g. a command line whose
	// page is swapped out.
	Missing []string `json:"missing,omitempty"`
	// Unknown names, as in JSON, the fields that say nothing, because the types of
	// the kernel are not known that well. JSON leaves them out.
	Unknown []string `json:"unknown,omitempty"`
}

// Module is a loaded kernel module.
type Module struct {
	Name   Text   `json:"name"`
	Size   uint64 `json:"size"` // bytes, as the kernel's own list gives it
	Base   mem.VA `json:"base"` // of its text
	Refs   int    `json:"refs"` // users; -1 while it is being unloaded, and if the kernel does not count
	UsedBy []Text `json:"used_by,omitempty"`
	// Permanent says that the module has no way to be unloaded.
	Permanent bool     `json:"permanent,omitempty"`
	State     string   `json:"state"` // "Live", "Loading", "Unloading", "Unformed"
	Taint     string   `json:"taint,omitempty"`
	Addr      mem.VA   `json:"module"` // of the kernel's object
	Parts     []Region `json:"parts,omitempty"`
	Unknown   []string `json:"unknown,omitempty"` // as of Process
}

// Region is a run of virtual memory with one purpose.
type Region struct {
	Name  Text   `json:"name,omitempty"`
	Start mem.VA `json:"start"`
	Size  uint64 `json:"size"`
}

// Code is a run of kernel memory that holds code and that one of the kernel's
// own lists accounts for.
type Code struct {
	Region        // Name is the module's, the program's, …
	Kind   string `json:"kind"` // "kernel", "init", "module", "bpf", "ftrace", "kprobe", "realmode"
}

// Area is one mapped area of a process's memory.
type Area struct {
	Start  mem.VA `json:"start"`
	End    mem.VA `json:"end"`
	Perms  string `json:"perms"`  // as in /proc/PID/maps: rwxp
	Offset uint64 `json:"offset"` // bytes into the file
	Dev    string `json:"dev"`    // major:minor, hexadecimal
	Inode  uint64 `json:"inode"`
	Path   Text   `json:"path,omitempty"` // or [heap], [stack], [vdso], …
}

// File is an open file of a process.
type File struct {
	PID   int    `json:"pid"`
	Comm  Text   `json:"comm"`
	FD    int    `json:"fd"`
	Type  string `json:"type"` // REG DIR CHR BLK FIFO SOCK LINK or anon
	Path  Text   `json:"path"` // as readlink /proc/PID/fd/FD prints it
	Inode uint64 `json:"inode"`
	Dev   string `json:"dev"`
	Pos   int64  `json:"pos"`
	Flags uint32 `json:"flags"` // of open(2)
	Mode  string `json:"mode"`  // r, w or u (both), as in lsof
	Addr  mem.VA `json:"file"`
}

// Mount is one mount of a mount namespace.
type Mount struct {
	ID      int    `json:"id"`
	Parent  int    `json:"parent"`
	Dev     string `json:"dev"` // major:minor, decimal
	Root    Text   `json:"root"`
	Target  Text   `json:"target"`
	Options string `json:"options"`
	// Propagation is as in /proc/PID/mountinfo, e.g. "shared:1 master:2".
	Propagation string `json:"propagation,omitempty"`

	Type   Text `json:"type"`
	Source Text `json:"source"`
	// UUID is that of a file system on a disk, in hexadecimal with dashes; "" for one that has none.
	UUID string `json:"uuid,omitempty"`
	// SuperOptions are those of the file system that all file systems share.
	SuperOptions string `json:"super_options"`
	Addr         mem.VA `json:"mount"`
}

// Socket is a network or unix-domain socket.
type Socket struct {
	Proto  string `json:"proto"` // tcp tcp6 udp udp6 unix unix-dgram unix-seqpacket
	State  string `json:"state"` // as ss(8) prints it: LISTEN, ESTAB, …
	Local  Text   `json:"local"` // address:port, or path
	Remote Text   `json:"remote,omitempty"`
	Inode  uint64 `json:"inode"` // 0: no descriptor leads to it (yet, or any more)
	UID    uint32 `json:"uid"`   // who made it, in the initial user namespace
	// Peer is the inode of the socket at the other end of a unix-domain
	// connection.
	Peer uint64 `json:"peer,omitempty"`
	// Owners are the processes that hold a descriptor of it.
	Owners []Owner `json:"owners,omitempty"`
	NetNS  uint64  `json:"netns,omitempty"` // inode of its network namespace
	Addr   mem.VA  `json:"sock"`
}

// Owner is one descriptor of one process.
type Owner struct {
	PID  int  `json:"pid"`
	Comm Text `json:"comm"`
	FD   int  `json:"fd"`
}

// LogRecord is one record of the kernel's log.
type LogRecord struct {
	Seq      uint64        `json:"seq"`
	Time     time.Duration `json:"ns"` // nanoseconds since boot
	Facility int           `json:"facility"`
	Level    int           `json:"level"`
	Caller   string        `json:"caller,omitempty"` // "T123" a task, "C0" a CPU
	Text     Text          `json:"text"`             // may be of several lines
	// Subsystem and Device say which device the record is about, if any, as
	// the dictionary of /dev/kmsg does.
	Subsystem Text `json:"subsystem,omitempty"`
	Device    Text `json:"device,omitempty"`
}
