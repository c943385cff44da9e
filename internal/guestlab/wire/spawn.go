package wire

// Spawn is a process to start in the guest and to leave running. Without Hold it runs a tiny program that sleeps for
// ever, so its argument vector, environment and name may be any bytes at all.
type Spawn struct {
	Comm     []byte   `json:"comm,omitempty"`     // the sleeper's file name, hence its comm (first 15 bytes); no '/' or NUL
	Args     [][]byte `json:"args,omitempty"`     // argument vector from argv[0] on; nil: the file name alone
	Env      [][]byte `json:"env,omitempty"`      // whole environment
	Dir      string   `json:"dir,omitempty"`      // working directory, "/" if empty
	UID      uint32   `json:"uid,omitempty"`      //
	GID      uint32   `json:"gid,omitempty"`      //
	Cgroup   string   `json:"cgroup,omitempty"`   // path below the cgroup mount, made if absent
	NewNS    []string `json:"new_ns,omitempty"`   // any of mnt pid net uts ipc cgroup user
	Hostname string   `json:"hostname,omitempty"` // set in the new uts namespace; needs Hold
	Hold     *Hold    `json:"hold,omitempty"`     // if set, the process is the helper itself and holds these things
}

// Hold is state for a process to create and keep. Everything is made before Spawn returns.
type Hold struct {
	Threads   [][]byte `json:"threads,omitempty"`   // one thread of each name, beside those of the Go runtime
	Files     []string `json:"files,omitempty"`     // opened for reading and writing, made if absent
	Deleted   []string `json:"deleted,omitempty"`   // made, opened, removed
	Dirs      []string `json:"dirs,omitempty"`      // directories opened for reading
	Maps      []string `json:"maps,omitempty"`      // files of two pages, first page mapped shared, second private
	Anonymous int      `json:"anonymous,omitempty"` // separate anonymous mappings of this many pages
	Kinds     []string `json:"kinds,omitempty"`     // any of pipe eventfd epoll memfd timerfd signalfd inotify socketpair bpf, or code: "anonymous code" "memfd code" "patched code" "traced child", or "marked memory", or "socket waits" (threads "accepts", "polls" and "epolls")
	Listen    []string `json:"listen,omitempty"`    // tcp4|tcp6|unix:ADDRESS; a unix address that starts with @ is abstract
	Connect   []string `json:"connect,omitempty"`   // same form; both ends are held if this process also listens there
	Bind      []string `json:"bind,omitempty"`      // udp4|udp6|unixgram:ADDRESS
	Mounts    []string `json:"mounts,omitempty"`    // directories to mount a tmpfs on, in a mount namespace of its own
}
