package wire

// The facts are what the guest's own /proc says. Byte strings that a process chooses need not be UTF-8 and so are
// []byte, base64 in JSON. Integers are as the kernel prints them, in its units.

// Process is one entry of /proc, named by its thread group.
type Process struct {
	PID        int               `json:"pid"`
	TGID       int               `json:"tgid"`
	PPID       int               `json:"ppid"`
	UID        uint32            `json:"uid"` // real
	GID        uint32            `json:"gid"`
	EUID       uint32            `json:"euid"`
	EGID       uint32            `json:"egid"`
	Comm       []byte            `json:"comm"` // of a kworker /proc appends what it works on, which the kernel's comm lacks
	Cmdline    []byte            `json:"cmdline,omitempty"`
	Exe        []byte            `json:"exe,omitempty"` // " (deleted)" at its end if it is
	Cwd        []byte            `json:"cwd,omitempty"`
	State      string            `json:"state"`       // one letter
	Flags      uint64            `json:"flags"`       // PF_*
	StartTicks uint64            `json:"start_ticks"` // 1/100 s since boot
	Threads    int               `json:"threads"`
	Kthread    bool              `json:"kthread,omitempty"`
	NSPID      []int             `json:"ns_pid,omitempty"` // in this and the inner PID namespaces
	Cgroup     []string          `json:"cgroup,omitempty"` // lines of /proc/PID/cgroup
	NS         map[string]uint64 `json:"ns,omitempty"`     // namespace kind to inode
	VSize      uint64            `json:"vsize,omitempty"`  // bytes
}

// Thread is one entry of /proc/PID/task.
type Thread struct {
	TGID       int    `json:"tgid"`
	TID        int    `json:"tid"`
	Comm       []byte `json:"comm"`
	State      string `json:"state"`
	StartTicks uint64 `json:"start_ticks"`
}

// Module is a line of /proc/modules, with the section addresses of /sys/module.
type Module struct {
	Name     string            `json:"name"`
	Size     uint64            `json:"size"`
	Refs     int               `json:"refs"`
	UsedBy   []string          `json:"used_by,omitempty"`
	State    string            `json:"state"` // Live, Loading, Unloading
	Addr     uint64            `json:"addr"`
	Taint    string            `json:"taint,omitempty"`
	Sections map[string]uint64 `json:"sections,omitempty"`
}

// Mount is a line of /proc/self/mountinfo.
type Mount struct {
	ID       int      `json:"id"`
	Parent   int      `json:"parent"`
	Dev      string   `json:"dev"` // major:minor
	Root     []byte   `json:"root"`
	Target   []byte   `json:"target"`
	Options  string   `json:"options"`
	Optional []string `json:"optional,omitempty"` // shared:N and the like
	FSType   string   `json:"fs_type"`
	Source   []byte   `json:"source"`
	Super    string   `json:"super"` // the super block's options
}

// Socket is a line of /proc/net/{tcp,tcp6,udp,udp6,unix}.
type Socket struct {
	Proto  string  `json:"proto"`
	NetNS  uint64  `json:"net_ns"` // inode of the network namespace
	Local  string  `json:"local,omitempty"`
	Remote string  `json:"remote,omitempty"`
	State  int     `json:"state"` // TCP_*, for unix sockets SS_*
	Inode  uint64  `json:"inode"`
	UID    uint32  `json:"uid"`            // not told for unix sockets
	Path   []byte  `json:"path,omitempty"` // unix; an abstract name starts with @
	Type   int     `json:"type,omitempty"` // unix: 1 stream, 2 datagram, 5 seqpacket
	Flags  uint64  `json:"flags,omitempty"`
	Refs   int     `json:"refs,omitempty"`
	Owners []Owner `json:"owners,omitempty"`
}

// Owner is a process's descriptor of a socket.
type Owner struct {
	PID int `json:"pid"`
	FD  int `json:"fd"`
}

// FD is an open descriptor: the link of /proc/PID/fd and what fdinfo says.
type FD struct {
	PID     int    `json:"pid"`
	FD      int    `json:"fd"`
	Link    []byte `json:"link"`
	Pos     int64  `json:"pos"`
	Flags   uint64 `json:"flags"` // O_*
	MountID int    `json:"mount_id"`
	Dev     uint64 `json:"dev"`
	Inode   uint64 `json:"inode"`
	Mode    uint32 `json:"mode"` // st_mode of the open file
}

// Mapping is a line of /proc/PID/maps.
type Mapping struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"`
	End    uint64 `json:"end"`
	Perms  string `json:"perms"`
	Offset uint64 `json:"offset"`
	Major  uint32 `json:"major"`
	Minor  uint32 `json:"minor"`
	Inode  uint64 `json:"inode"`
	Path   []byte `json:"path,omitempty"`
}

// LogRecord is a record of /dev/kmsg.
type LogRecord struct {
	Seq      uint64            `json:"seq"`
	Usec     uint64            `json:"usec"`
	Level    int               `json:"level"`
	Facility int               `json:"facility"`
	Text     []byte            `json:"text"`
	Dict     map[string]string `json:"dict,omitempty"`
}

// System is the guest as a whole, and its clocks at one moment.
type System struct {
	Sysname  string `json:"sysname"`
	Nodename string `json:"nodename"`
	Release  string `json:"release"`
	Version  string `json:"version"`
	Machine  string `json:"machine"`
	Cmdline  string `json:"cmdline"`
	Banner   string `json:"banner"`  // /proc/version
	BootID   string `json:"boot_id"` //
	Realtime int64  `json:"realtime"`
	Boottime int64  `json:"boottime"` // nanoseconds, as all clocks here
	Monotone int64  `json:"monotone"`
	Jiffies  uint64 `json:"jiffies"` // as far as /proc/timer_list tells
}
