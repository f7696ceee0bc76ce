variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "count" {
  type    = number
  default = 1
}

variable "image" {
  type        = string
  default     = "final-app:v0.1"
  description = "Built on each client: nothing is pulled."
}

variable "provider" {
  type        = string
  default     = "consul"
  description = "Where the service is registered: consul or nomad."
}

variable "network" {
  type        = string
  default     = "host"
  description = "bridge: a network of its own, which the CNI plugins make, and an image that holds it."
}

variable "text" {
  type    = string
  default = "The Nomad cluster, Docker and the service's registration are all working."
}

job "final-app" {
  datacenters = var.datacenters

  group "app" {
    count = var.count

    spread {
      attribute = "${node.unique.name}"
    }

    network {
      mode = var.network

      port "http" {
        to = 8080
      }
    }

    update {
      max_parallel     = 1
      min_healthy_time = "3s"
      healthy_deadline = "2m"
      auto_revert      = true
    }

    service {
      name     = "final-app"
      provider = var.provider
      port     = "http"

      check {
        type     = "http"
        path     = "/health"
        interval = "2s"
        timeout  = "2s"
      }
    }

    task "final-app" {
      driver = "docker"

      config {
        image      = var.image
        force_pull = false
        ports      = ["http"]
      }

      env {
        TEXT = var.text
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
