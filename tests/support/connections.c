// LD_PRELOAD: every attempt to look up a host or to connect elsewhere than to a local socket is noted and refused.

#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *where) {
  const char *path = getenv("CONNECTIONS");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file) {
    fprintf(file, "%s %s\n", what, where ? where : "");
    fclose(file);
  }
}

int connect(int number, const struct sockaddr *address, socklen_t length) {
  (void)number;
  (void)length;
  note("connect", address->sa_family == AF_UNIX ? "locally" : "elsewhere");
  errno = ENETUNREACH;
  return -1;
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  (void)service;
  (void)hints;
  (void)found;
  note("look up", node);
  return EAI_FAIL;
}

ssize_t sendto(int number, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
  (void)number;
  (void)data;
  (void)flags;
  (void)length;
  if (to && to->sa_family != AF_UNIX && to->sa_family != AF_NETLINK) {
    note("send", "elsewhere");
    errno = ENETUNREACH;
    return -1;
  }
  return (ssize_t)size;
}
